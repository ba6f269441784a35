"""`headwatch roles MODEL`: what each head attends to and writes, and pictures of attention patterns."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from headwatch.commands.loading import dtype_and_device, model_name, probes_argument
from headwatch.commands.options import add_command, at_least_one, in_existing_folder, one_of
from headwatch.commands.watch_options import add_model_options, add_pair_options, add_run_options
from headwatch.errors import UserError

# Repeated from headwatch.analysis.roles, which imports torch; a test compares them.
COLUMNS = (
    *("entropy", "previous_token", "first_token", "distance", "receiver_kurtosis", "sentence_kurtosis", "induction"),
    *("write", "weight_change"),
)

FAMILIES = ("addition",)  # without --probes and --run
PAIRS = 16


def add(commands: Any) -> None:
    """Declare the command."""
    roles = add_command(
        commands,
        "roles",
        run,
        "measure what each head attends to and writes, and draw attention patterns",
        "headwatch roles Qwen/Qwen2.5-Math-1.5B --sort induction --heads L17.H3 --out roles",
    )
    roles.add_argument("model", metavar="MODEL", help="model folder, or a name on the Hugging Face Hub")
    roles.add_argument("--base", default=None, metavar="MODEL", help="model before training, for the change of weights")
    add_pair_options(roles, FAMILIES, PAIRS, of_run=True)
    roles.add_argument(
        "--texts",
        default=None,
        metavar="FILE.jsonl",
        help='measure attention on the "text" of each line instead of the prompts, such as samples.jsonl of evaluate',
    )
    roles.add_argument("--n-texts", type=at_least_one, default=16, help="number of texts, the first ones (16)")
    roles.add_argument("--max-tokens", type=at_least_one, default=512, help="tokens of a text, at most (512)")
    roles.add_argument("--sort", type=one_of(COLUMNS), default="write", help=f"{', '.join(COLUMNS)} (write)")
    roles.add_argument("--top", type=at_least_one, default=15, help="number of heads to print (15)")
    roles.add_argument("--heads", nargs="+", default=None, metavar="HEAD", help="heads to print and draw (L17.H3 ...)")
    roles.add_argument(
        "--out",
        type=in_existing_folder,
        default=None,
        metavar="DIR",
        help="write an attention picture of each of --heads to DIR",
    )
    add_model_options(roles)
    add_run_options(roles)
    roles.add_argument("--json", action="store_true", help="print all heads as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if arguments.out is not None and arguments.heads is None:
        raise UserError("--out needs --heads: name the heads whose attention is drawn")
    from headwatch.model.head_names import head_name, parse_heads
    from headwatch.record.after import heads_with_events, keep_result, run_to_keep_in

    run_folder = run_to_keep_in(arguments.run_folder)
    parse_heads(" ".join(arguments.heads or []), None, "--heads")
    name = model_name(arguments.model)
    base_name = None if arguments.base is None else model_name(arguments.base)
    if arguments.run_folder is None:
        probes_argument(arguments.probes or FAMILIES)
    dtype, device = dtype_and_device(arguments.dtype, arguments.device)
    from headwatch.analysis.attention import patterns_of
    from headwatch.analysis.roles import head_roles
    from headwatch.analysis.texts import read_texts
    from headwatch.commands.run_defaults import RunDefaults, refuse_other_shape
    from headwatch.model.loading import Loader, adapter_base, load_tokenizer, read_shape
    from headwatch.sinks.wandb_after import log_roles

    shape = read_shape(name)
    refuse_other_shape(run_folder, arguments.model, shape)
    heads = parse_heads(" ".join(arguments.heads or []), shape, "--heads")
    if base_name is not None and (of_base := read_shape(base_name)) != shape:
        raise UserError(
            f"--base {arguments.base} has {of_base[0]} layers x {of_base[1]} heads, and {arguments.model} has "
            f"{shape[0]} x {shape[1]}: give the model that it was trained from"
        )
    defaults = RunDefaults(run_folder, arguments)
    tokenizer = load_tokenizer(*filter(None, (name, adapter_base(name))))
    probes = defaults.probes(tokenizer, FAMILIES, PAIRS)
    texts = []
    if arguments.texts is not None:
        texts = read_texts(Path(arguments.texts), tokenizer, arguments.n_texts, arguments.max_tokens)
    defaults.print_notes()
    model = Loader(dtype, device).model(name)
    base = None if base_name is None else Loader(dtype).model(base_name)
    with tqdm(unit="prompt", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = head_roles(model, probes, base, texts=texts, seed=defaults.seed, progress=progress)
    names = {head_name(*head) for head in heads}
    rows = [row for row in found.rows() if not names or row["head"] in names]
    rows.sort(key=lambda row: -abs(row[arguments.sort] or 0.0))
    drawn = heads if run_folder is None or heads else heads_with_events(run_folder)
    patterns = patterns_of(model, probes, tokenizer, drawn)
    files = [] if arguments.out is None else _draw(patterns, Path(arguments.out), Path(name).name)
    if run_folder is not None:
        kept = {"model": arguments.model, "base": arguments.base, **found.to_json(patterns)}
        files.append(str(keep_result(run_folder, "roles", kept)))
    if arguments.report_to == "wandb":
        log_roles(arguments.model, found.rows(), None if run_folder is None else run_folder.manifest.get("wandb"))
    if arguments.json:
        print(json.dumps({"model": arguments.model, "prompts": found.prompts, "heads": rows, "files": files}))
        return 0
    print("\n".join(_table(rows if names else rows[: arguments.top])))
    for file in files:
        print(file)
    return 0


def _draw(patterns: list[Any], out: Path, name: str) -> list[str]:
    """Draw patterns; returns the files."""
    from headwatch.analysis.attention_drawing import attention_svg
    from headwatch.model.head_names import head_name

    out.mkdir(parents=True, exist_ok=True)
    files = []
    for each in patterns:
        head = head_name(*each.head)
        path = out / f"{each.family}-{head}.svg"
        title = f"{head} of {name}, {each.family}"
        path.write_text(attention_svg(each.pattern, each.tokens, title), encoding="utf-8")
        files.append(str(path))
    return files


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = [column for column in COLUMNS if any(row[column] is not None for row in rows)]
    lines = ["  ".join([f"{'head':>9}", *names])]
    for row in rows:
        cells = [("" if row[c] is None else f"{row[c]:.3g}").rjust(len(c)) for c in names]
        lines.append("  ".join([f"{row['head']:>9}", *cells]))
    return lines
