"""``python -m distill.export``: make a trained run one plain Hugging Face directory.

The final model, or the mean of the fold models, merged and written so that
``AutoModelForSequenceClassification`` loads it. A temperature, fitted on the run's out-of-fold predictions,
is folded into its head where that helps; the model card has the lines that use it. ``distill.predict`` takes
the directory like a run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.console.command import format_table, parser_of, run
from data.errors import UserError, brief
from distill.arguments import access_of, add_access_arguments, check_models

if TYPE_CHECKING:
    from distill.runs.saved import SavedModel

LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
"""An identifier that the hub may know; it stands in the card's YAML."""
DTYPES = ("float32", "bfloat16", "float16")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of("distill.export", __doc__, "distill.export --model runs/demo/student --out exported")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the model goes")
    parser.add_argument(
        "--average",
        action="store_true",
        help="the mean of the fold models' changes, instead of the model trained on all rows",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    parser.add_argument("--data", type=Path, help="the run's prepared data, if it has moved")
    parser.add_argument("--license", default="other", help="for the model card, such as apache-2.0")
    parser.add_argument(
        "--onnx",
        nargs="?",
        choices=("float32", "int8"),
        const="float32",
        help="also write onnx/model.onnx, for runtimes without torch; int8: model_int8.onnx beside it, too",
    )
    parser.add_argument("--push-to-hub", metavar="NAME", help="also upload it, as owner/name, private")
    add_access_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    args = arguments(argv)
    from distill.processes import held, stand_alone

    stand_alone("distill.export")
    check_models([args.model])
    if not LICENCE.fullmatch(args.license):
        raise UserError(
            f"--license {brief(args.license, 60)}: is no licence's identifier, such as apache-2.0 or llama3.1"
        )
    if args.onnx and args.dtype != "float32":
        raise UserError(
            f"--onnx with --dtype {args.dtype}: the graph is written in float32; leave --dtype out"
        )
    if args.onnx:
        import onnxruntime  # noqa: F401 (named, where they lack, before anything is written)
        import onnxscript  # noqa: F401
    from distill.runs.saved import EXPORTED, read_saved

    saved = read_saved(args.model, replace(access_of(args), merges=True))
    with held(args.out):
        if any(args.out.iterdir()) and not (args.out / EXPORTED).exists():
            raise UserError(f"{args.out}: is not empty; choose another --out, or delete that directory")
        found = export(saved, args.out, args.average, args.dtype, args.data, args.license, args.onnx)
    if args.onnx:
        print(f"ONNX: {args.out / found['graph']}")
    line = [saved.name, str(found["rows"]), f"{found['log_loss']:.4f}", f"{found['folded']:.3f}"]
    print(
        format_table(
            ["model", "rows", "out-of-fold log-loss", "temperature", "exported to"], [[*line, str(args.out)]]
        )
    )
    if args.push_to_hub:
        print(f"uploaded: {push(args.out, args.push_to_hub)}")


def export(
    saved: SavedModel,
    out: Path,
    average: bool,
    dtype: str,
    data: Path | None,
    licence: str,
    onnx: str | None = None,
) -> dict[str, Any]:
    """Write the plain model, tokenizer, settings, card and graphs into ``out``; return the run's scores.

    All is written beside ``out`` and put there by renaming, so that what is there is whole.

    Raises
    ------
    UserError
        The run's data or backbone are gone or changed; there is no such model in the run.
    """
    import torch

    from data.dataset import load_prepared
    from data.encoding.encode import Encoder, pad_token_id
    from data.encoding.plain_text import special_ids
    from data.encoding.template import recorded_template
    from data.encoding.truncate import Truncation
    from data.files import write_json, write_text
    from data.softlabels import read_store
    from distill.model.files import writing
    from distill.prediction.card import model_card, scores, usage
    from distill.prediction.merge import fold_temperature, merged_model
    from distill.quiet import quiet_transformers
    from distill.runs.run_directory import RunDirectory
    from distill.runs.saved import CARD, EXPORTED, checked_tokenizer, output_names, sealed
    from distill.teaching.trust import check_made_from

    manifest, model = saved.manifest, saved.model
    home = data or Path(os.path.normpath(saved.path / manifest.get("data", ".")))
    rows, folds = load_prepared(home)
    check_made_from(rows, folds, str(home), manifest, saved.path)
    weights = RunDirectory(saved.path).weights(average=True) if average else saved.weights
    if average and len(weights) != manifest["n_folds"]:
        raise UserError(f"{saved.path}: has {len(weights)} of {manifest['n_folds']} fold models to average")
    if not average and len(weights) != 1:
        raise UserError(
            f"{saved.path}: has no model trained on all rows; give --average for the fold models'"
        )
    found = scores(read_store(saved.path), rows, folds)
    tokenizer = checked_tokenizer(saved)
    plain = merged_model(
        model,
        saved.backbone,
        weights,
        rows.classes.outputs,
        getattr(torch, dtype),
        saved.access.accept_changed,
    )
    helps = found["log_loss_tempered"] < found["log_loss"]
    found["folded"] = found["temperature"] if helps else 1.0
    fold_temperature(plain, found["folded"])
    plain.config.pad_token_id = pad = pad_token_id(tokenizer)
    if pad in special_ids(tokenizer):  # a batch is pooled right only where both pad alike
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    elif tokenizer.pad_token_id is not None:
        plain.config.pad_token_id = tokenizer.pad_token_id
    names = output_names(rows.classes)
    plain.config.id2label = dict(enumerate(names))
    plain.config.label2id = {name: k for k, name in enumerate(names)}
    temporary = out.parent / f".{out.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.model_max_length = manifest["truncation"]["max_length"]
    made_of = f"the mean of {len(weights)} fold models" if average else "trained on all labelled rows"
    try:
        with writing(temporary), quiet_transformers():
            plain.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        settings = settings_of(saved, found, made_of, temporary)
        write_json(temporary / EXPORTED, sealed(settings, temporary))
        template = recorded_template(manifest["template"], saved.path)
        encoder = Encoder(tokenizer, template, Truncation(**manifest["truncation"]))
        write_text(
            temporary / CARD, model_card(manifest, found, made_of, licence, usage(encoder, rows.classes))
        )
        present = (out / EXPORTED).exists()
        if present:
            refuse_other(out, temporary)
        if onnx:
            from distill.prediction.onnx import moved, write_graphs

            del plain
            found["graph"] = write_graphs(temporary, onnx == "int8").relative_to(temporary)
        if not present:
            if out.exists():
                out.rmdir()
            os.replace(temporary, out)
        elif onnx:
            moved(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def refuse_other(out: Path, made: Path) -> None:
    """Refuse an export that is there already, unless it is the one just made: a kill may come late."""
    from data.files import sha256_files
    from distill.runs.saved import CARD, EXPORTED, read_saved

    theirs, ours = ([place / name for name in (EXPORTED, CARD)] for place in (out, made))
    if not all(file.is_file() for file in theirs) or sha256_files(theirs) != sha256_files(ours):
        raise UserError(f"{out}: holds another export; choose another --out, or delete that directory")
    read_saved(out)


def settings_of(saved: SavedModel, found: dict[str, Any], made_of: str, directory: Path) -> dict[str, Any]:
    """Return what a plain checkpoint has no place for, and prediction needs."""
    from data.candidates import CANDIDATES
    from data.encoding.encode import tokenizer_hash
    from data.encoding.tokenizer import load_tokenizer

    manifest = saved.manifest
    return {
        "format": 2,
        "classes": manifest["classes"],
        "swap": manifest.get("swap"),
        **{name: manifest[name] for name in (CANDIDATES, "sets") if name in manifest},
        "template": manifest["template"],
        "truncation": manifest["truncation"],
        "tokenizer_hash": tokenizer_hash(load_tokenizer(str(directory))),
        "packed": saved.model.backbone.packed,
        "temperature": 1.0,
        "scores": found,
        "made_of": made_of,
        "rows_hash": manifest["rows_hash"],
        "folds_hash": manifest["folds_hash"],
    }


def push(directory: Path, name: str) -> str:
    """Upload an exported directory as a private repository; return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory)
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--push-to-hub {name}: {reason}; the model itself is complete in {directory}"
        ) from error
    return str(address)


if __name__ == "__main__":
    run(main)
