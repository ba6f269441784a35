"""`headwatch train` by `accelerate launch` on CPU processes treated as devices, so that accelerate shards the model."""

import sys

from helpers.cpu_accelerator import treat_cpu_processes_as_devices

treat_cpu_processes_as_devices()

from headwatch.training.launch import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
