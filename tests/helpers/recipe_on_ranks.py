"""`headwatch train` under torchrun on CPU processes that accelerate treats as devices, so that it shards the model."""

import sys

from helpers.cpu_accelerator import treat_cpu_processes_as_devices

treat_cpu_processes_as_devices()

from headwatch.training.launch import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
