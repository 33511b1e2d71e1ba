"""The command `reusekit`."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, PositiveInt
from rich.console import Console
from rich.table import Table

from reusekit.arguments import AnyPath, Choices, check, expanded
from reusekit.errors import CacheError, ConfigError, TrackingError
from reusekit.launch import completion_of, launch_one_of
from reusekit.sealed_json import write_durably
from reusekit.startup import start_keras

_ENVIRONMENT = "python_env.yaml"
"""The file that `MLproject` names."""

GREETING = """\
reusekit reuses pretrained Keras models. Five things to begin with:

  reusekit cuts reusekit/glyphnet                             list where a model can be cut
  reusekit init mine                                          lay pipelines into a project of yours
  reusekit doctor model.keras                                 find what is wrong with a model
  reusekit predict models:/digits@champion one.png            ask a registered model
  reusekit export models:/digits@champion --to litert,onnx    write it for other runtimes

'reusekit --help' lists all subcommands; 'reusekit SUBCOMMAND --help' says more of one."""

# The rooms are imported by the commands that need them: Keras takes seconds.
if TYPE_CHECKING:
    import pandas as pd

    from reusekit.features import EntryInfo


def cuts(
    source: str,
    input_shape: tuple[int, int, int] | None = None,
    max_width: PositiveInt = 1,
    verbose: bool = False,
) -> None:
    """List where a pretrained model can be cut, shallow to deep.

    Args:
        source: keras.applications/NAME; reusekit/glyphnet; the path of a .keras or .h5 file;
            keras_hub/PRESET or the folder of a preset; models:/NAME@ALIAS from the registry.
        input_shape: Height, width and channels, where not the source's own.
        max_width: How many tensors may cross a cut.
        verbose: Show the traceback of an error.
    """
    start_keras()
    from reusekit.backbones import load_backbone
    from reusekit.graph import CutPoints, cut_points

    # Where a model can be cut does not depend on its weights, so none are downloaded.
    model = load_backbone(source, weights=None, input_shape=input_shape).model
    # All tensors, since a finite width leaves out the output, which is the deepest cut.
    every = cut_points(model, max_width=None)
    points = [p for p in every if p.width <= max_width and p.params_before]
    print(CutPoints(tuple(points), every.model, every.uncounted))


def init(folder: str, verbose: bool = False) -> None:
    """Lay a copy of the pipelines and their configurations into a new project of yours.

    Args:
        folder: Where to; what is there already is never overwritten.
        verbose: Show the traceback of an error.
    """
    check(AnyPath, folder, "folder", ConfigError)
    target = expanded(folder, ConfigError)
    carried = _carried()
    taken = [name for name in (*carried, _ENVIRONMENT) if (target / name).exists()]
    if taken:
        raise ConfigError(
            f"Expected a folder without {taken[0]!r}. Received: {target}, which has it already. "
            "Choose a new one, or move that away."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target) as draft:
            ignore = shutil.ignore_patterns("__pycache__")
            for name, source in carried.items():
                if source.is_dir():
                    shutil.copytree(source, Path(draft) / name, ignore=ignore)
                else:
                    shutil.copy(source, Path(draft) / name)
            Path(draft, _ENVIRONMENT).write_text(
                "# What `mlflow run` makes an environment of, unless --env-manager local takes the "
                f'one at hand.\npython: "{sys.version_info.major}.{sys.version_info.minor}"\n'
                f"dependencies:\n  - reusekit=={version('reusekit')}\n"
            )
            for name in (*carried, _ENVIRONMENT):
                (Path(draft) / name).rename(target / name)
    except OSError as error:
        raise ConfigError(
            f"Expected a folder that can be written. Received: {target}: {error.strerror}. Choose "
            "another one."
        ) from error
    pipeline, config = target / "pipelines" / "cut_search.py", target / "configs" / "digits.yaml"
    print(shlex.join([sys.executable, str(pipeline), "--config", str(config)]))


def cache(
    action: Literal["list", "verify", "gc", "clear"],
    path: str | None = None,
    budget: PositiveInt | None = None,
    verbose: bool = False,
) -> None:
    """List, verify or remove stored features: cache list | verify | gc | clear.

    Args:
        action: "list" shows what is stored. "verify" reads all of it and compares its checksums.
            "gc" removes what was left unfinished and, where there is a budget, what was used
            longest ago. "clear" removes everything. Features in use always stay.
        path: The store's folder, or its address such as s3://BUCKET/PREFIX;
            ~/.cache/reusekit/features where none is given.
        budget: How many bytes may stay; for gc.
        verbose: Show the traceback of an error.
    """
    start_keras()
    from reusekit.features import FeatureStore, default_path
    from reusekit.objects import is_url

    check(AnyPath | None, path, "--path", CacheError)
    folder: Any = path if is_url(path) else expanded(path or default_path(), CacheError)
    if not FeatureStore.exists(folder):
        raise CacheError(
            f"Expected the folder of a feature store. Received: {folder}, in which there is none. "
            "Name its folder with --path."
        )
    if budget is not None and action != "gc":
        raise CacheError(f"Expected a budget with 'gc' alone. Received: {action!r} with one.")
    store = FeatureStore(folder)
    if action == "list":
        _show(store.entries(), f"Features in {folder}")
    elif action == "verify":
        damaged = store.verify()
        _show(store.entries(), f"Features in {folder}", damaged)
        bad = sum(count > 0 for count in damaged.values())
        if bad:
            raise CacheError(
                f"Expected entries as they were written. Received: {bad} of {len(damaged)} that "
                "are damaged. Ask for them again, which computes their damaged blocks anew."
            )
    else:
        removed = store.gc(budget) if action == "gc" else store.clear()
        _show(removed, f"Removed from {folder}")
        print(f"{len(store.entries())} entries stay.")


def sync(folder: str = "runs", uri: str | None = None, verbose: bool = False) -> None:
    """Send what jobs kept while their tracking server was away: sync [FOLDER].

    Nothing is sent twice, whenever it is interrupted and called again.

    Args:
        folder: Of one job, or of many.
        uri: Tracking server or database; null for the one that each job was meant for.
        verbose: Show the traceback of an error.
    """
    # Here, since MLflow takes seconds to import, and the other subcommands do without.
    start_keras()
    from reusekit.progress import counted
    from reusekit.tracking.outbox import InUseError, find_outboxes, send_outbox

    check(AnyPath, folder, "folder", ConfigError)
    root = expanded(folder, ConfigError)
    if not root.is_dir():
        raise ConfigError(
            f"Expected the folder of a job, or of many. Received: {folder!r}, which is no folder. "
            "Check its path."
        )
    outboxes, problems = find_outboxes(root), []
    if not outboxes:
        print(f"Nothing waits in {folder}.")
    for outbox in outboxes:
        taken = []
        try:
            with counted(f"Sending {outbox.folder}", len(outbox.records())) as step:
                for one in send_outbox(outbox, uri):
                    taken.append(one)
                    step()
        except InUseError:
            print(f"{outbox.folder}: left alone, since its job still runs or another sync sends it")
            continue
        except TrackingError as error:
            problems.append(str(error))
        left, refused = len(outbox.records()), taken.count(False)
        print(f"{outbox.folder}: sent {taken.count(True)}, refused {refused}, left {left}")
        if refused:
            problems.append(
                f"Expected a tracking server that takes all records. Received: {refused} refusals, "
                f"kept in {outbox.folder / 'refused'}. See the causes beside them."
            )
    if problems:
        raise TrackingError(problems[0])


def predict(
    model: str,
    files: list[str] | None = None,
    table: str | None = None,
    column: str | None = None,
    output: str | None = None,
    probabilities: bool = False,
    verbose: bool = False,
) -> None:
    """Predict files, or the rows of a table, with a registered model.

    Args:
        model: models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID or runs:/RUN_ID/NAME, on
            the server or database that MLFLOW_TRACKING_URI names.
        files: Pictures or texts. The row of one that cannot be read stays empty, with a warning.
        table: A file of CSV, TSV, Parquet or JSON lines, in place of files.
        column: The column of the table that the model is fed; null for those that it was trained
            on, or all.
        output: A file for the answers, as CSV; null writes them to standard output.
        probabilities: Write those of all classes or labels, too.
        verbose: Show the traceback of an error.
    """
    if bool(files) == bool(table) or (column and not table):
        raise ConfigError(
            "Expected files, or --table FILE with perhaps a --column. Received: "
            + ("both." if files else "neither.")
        )
    target = None if output is None else expanded(output, ConfigError)
    if target is not None and (target.is_dir() or not os.access(target.parent, os.W_OK)):
        raise ConfigError(
            f"Expected --output as a file in a folder that can be written. Received: {output!r}."
        )
    paths = [expanded(file, ConfigError) for file in files or ()]
    lacking = [str(path) for path in paths if not path.is_file()]
    if lacking:
        raise ConfigError(
            f"Expected files that are there. Received: {', '.join(map(repr, lacking))[:200]}, "
            "where none is. Check the paths."
        )
    start_keras()
    # A bar for each small file would hide the answers.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import pandas as pd

    from reusekit.tracking import predict_files, predict_table

    if table:
        answered = predict_table(model, table, column, probabilities)
    else:
        found = predict_files(model, paths, probabilities)
        answered = iter([(pd.DataFrame({"file": files}), found)])
    with TemporaryDirectory(dir=target and target.parent) as draft:
        written = Path(draft, "answers.csv")  # whole or not at all
        with written.open("w", newline="") if target else nullcontext(sys.stdout) as file:
            for number, (fed, answers) in enumerate(answered):
                rows = pd.concat([fed, _flat(answers)], axis=1)
                rows.to_csv(file, index=False, header=not number, lineterminator="\n")
        if target:
            written.replace(target)


def combine(
    name: str,
    models: list[str] | None = None,
    alias: str | None = None,
    refresh: NonNegativeFloat = 60.0,
    verbose: bool = False,
) -> None:
    """Register a model that answers with several registered models over the bottom they share.

    Where it is served, one pass through the bottom makes all answers, and each head follows the
    alias in its address: combine NAME models:/A@champion models:/B@champion ...

    Args:
        name: The name of the combined model in the registry.
        models: Addresses of registered models, on the server or database that MLFLOW_TRACKING_URI
            names. NAME=ADDRESS gives a head another name than the registered one.
        alias: The alias that is moved to the new version; null for 'champion', which the first
            version gets.
        refresh: The seconds after which a served model looks at the aliases again.
        verbose: Show the traceback of an error.
    """
    words = models or []
    named = [word.partition("=") for word in words if not word.startswith("models:")]
    heads = {head: address for head, _, address in named}
    if not words or len(heads) not in (0, len(words)) or "" in heads.values():
        raise ConfigError(
            "Expected addresses of models, or all as NAME=ADDRESS with a name for each head. "
            f"Received: {' '.join(words) or 'none'}."
        )
    start_keras()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from reusekit.tracking import combine as register

    made = register(name, heads or words, alias=alias, refresh=refresh)
    print(f"{made.name} is version {made.version}: {', '.join(heads or words)}")


def export(
    model: str,
    to: str = "litert",
    quantize: str = "none",
    max_accuracy_loss: NonNegativeFloat | None = None,
    output: str = "exports",
    data: str | None = None,
    verbose: bool = False,
) -> None:
    """Write a registered model as files for other runtimes, and compare them with it.

    Each file is opened in its own runtime and compared on the split that the model was tested on.
    Files and figures go into a run of their own in MLflow, and on the model card.

    Args:
        model: models:/NAME@ALIAS or models:/NAME/VERSION, on the server or database that
            MLFLOW_TRACKING_URI names.
        to: Formats: litert, onnx, openvino, saved_model, or several with commas between.
        quantize: Precisions: none, float16, int8, int8-calibrated, or several with commas between.
            A format has those of them that it can have.
        max_accuracy_loss: The most that the task's measure may lose in a file; null for any.
        output: The folder for the files.
        data: Where the data of the model's tests lie now, if not in TFDS's folder: a folder, or a
            table.
        verbose: Show the traceback of an error.
    """
    check(AnyPath, output, "--output", ConfigError)
    formats: list[Any] = [word.strip() for word in to.split(",")]
    precisions = [word.strip() for word in quantize.split(",")]
    check(Choices[Literal["litert", "onnx", "openvino", "saved_model"]], formats, "to", ConfigError)
    precise = Literal["none", "float16", "int8", "int8-calibrated"]
    check(Choices[precise], precisions, "quantize", ConfigError)
    start_keras()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from reusekit.stages import export_version

    folder = expanded(output, ConfigError)
    chosen: list[Any] = [None if word == "none" else word for word in precisions]
    made = export_version(model, formats, chosen, folder, max_accuracy_loss, data)
    print(made)
    print("Files:", *(one.path for one in made), sep="\n  ")


def report(model: str, output: str = "report.html", verbose: bool = False) -> None:
    """Write what a pipeline found as one page of HTML: report RUN | models:/NAME@ALIAS.

    Args:
        model: The id of a pipeline's run, or a registered version: models:/NAME@ALIAS or
            models:/NAME/VERSION, on the server or database that MLFLOW_TRACKING_URI names.
        output: The file.
        verbose: Show the traceback of an error.
    """
    check(AnyPath, output, "--output", ConfigError)
    target = expanded(output, ConfigError)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigError(
            f"Expected --output as a file in a folder that can be written. Received: {output!r}."
        )
    start_keras()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from reusekit.tracking import find_run, report_page

    page = report_page(*find_run(model))
    is_plain = target.is_file() and not target.is_symlink()
    try:
        if is_plain or not target.exists():
            write_durably(target, page)
        else:  # such as /dev/stdout
            target.write_text(page, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"Expected --output as a file that can be written. Received: {output!r}: "
            f"{error.strerror}."
        ) from error
    print(output)


def doctor(
    model: str,
    data: str | None = None,
    input: str | None = None,
    label: str | None = None,
    fix: str | None = None,
    verbose: bool = False,
) -> None:
    """Look for what is known to go wrong in Keras models: doctor MODEL [--data ...] [--fix FILE].

    Ends with code 0 where nothing was found, 1 where something was, and 2 where it cannot be told.

    Args:
        model: The path of a .keras or .h5 file, or what else `reusekit cuts` takes.
        data: Examples as they are fed to the model: a folder with one folder for each class, a
            table, or the name of a TFDS data set. Without them neither the range of inputs nor
            labels are checked.
        input: The column of inputs of a table, or the feature of a data set.
        label: The column of labels, likewise.
        fix: A new .keras file for the model with all mended that can be.
        verbose: Show the traceback of an error.
    """
    if fix is not None:
        check(AnyPath, fix, "--fix", ConfigError)
    start_keras()
    from reusekit.stages import examine, write_mended

    found = examine(model, data, input=input, label=label)
    print(found)
    if found.is_well:
        return
    left = sum(one.mend is None for one in found.findings)
    if fix is not None and left < len(found.findings):
        write_mended(found, expanded(fix, ConfigError))
        print(
            f"{fix} has all mended but {left} of {len(found.findings)}. Compile it before it is "
            "trained on."
        )
    raise SystemExit(1)


def completion(shell: Literal["bash", "zsh"], verbose: bool = False) -> None:
    """Print a script that completes this command: eval "$(reusekit completion bash)" in ~/.bashrc.

    For zsh, in ~/.zshrc behind `compinit`: eval "$(reusekit completion zsh)".

    Args:
        shell: The shell.
        verbose: Show the traceback of an error.
    """
    print(completion_of(_commands(), shell))


def _flat(answers: "pd.DataFrame") -> "pd.DataFrame":
    """Return answers with a column for each probability, and lists as JSON."""
    import pandas as pd

    flat: dict[str, pd.Series] = {}
    for name, values in answers.items():
        first = values.dropna().iloc[0]  # the row of what cannot be read is empty
        if isinstance(first, dict):
            task = str(name).removesuffix("probabilities")  # of several, which may share classes
            flat |= {f"{task}probability of {one}": values.str.get(one) for one in first}
        else:
            listed = isinstance(first, list)
            flat[str(name)] = values.map(json.dumps, na_action="ignore") if listed else values
    return pd.DataFrame(flat)


def _show(entries: "list[EntryInfo]", title: str, damaged: dict[str, int] | None = None) -> None:
    table = Table("key", "state", "model", "cut", "data", "examples", "bytes", "used", title=title)
    for column in table.columns[5:7]:
        column.justify = "right"
    for entry in entries:
        state = "whole" if entry.whole else "unfinished"
        if damaged and damaged.get(entry.digest):
            state = f"{damaged[entry.digest]} blocks damaged"
        about = {"model": "", "cut": "", "data": "", "split": "", **entry.about}
        table.add_row(
            entry.digest[:12],
            state,
            str(about["model"]),
            f"{about['cut']} {about.get('pooling') or ''}".strip(),
            f"{about['data']} {about['split']}".strip(),
            f"{entry.size:,}",
            f"{entry.bytes:,}",
            f"{entry.used.astimezone():%Y-%m-%d %H:%M}",
        )
    total = f"{sum(entry.bytes for entry in entries):,}"
    table.add_section()
    table.add_row("total", "", "", "", "", "", total, "")
    # As wide as it is: a pipe has no width of its own.
    Console(width=None if sys.stdout.isatty() else 1_000).print(table)


def _carried() -> dict[str, Path]:
    """Return the folders that `init` copies: in the wheel, or beside the package in a checkout."""
    package = Path(str(files("reusekit")))
    root = package / "_project"
    if not root.is_dir():
        root = package.parent
    return {name: root / name for name in ("pipelines", "configs", "MLproject")}


def _commands() -> dict[str, Callable[..., None]]:
    commands = (cuts, init, cache, sync, predict, combine, export, report, doctor, completion)
    return {command.__name__: command for command in commands}


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        print(version("reusekit"))
        return
    launch_one_of(_commands(), greeting=GREETING)
