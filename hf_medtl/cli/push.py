"""The command `hf-medtl push`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_medtl.cli.options import (
    AllowWord,
    DryRun,
    LicenseWaiver,
    ModelLicense,
    Private,
    PublishNames,
    Waive,
    check_exists,
    parse_waivers,
    print_files,
)


def push(
    run: Annotated[
        Path, typer.Argument(help="Folder of a finished run, a cross-validation or a study.", callback=check_exists)
    ],
    repo: Annotated[
        str, typer.Argument(help="Target repository: OWNER/NAME or NAME; prefix of the names of several models.")
    ],
    private: Private = False,
    waive: Waive = None,
    model_license: ModelLicense = None,
    license_waiver: LicenseWaiver = None,
    collection: Annotated[str | None, typer.Option(help="Title of a Collection for the pushed models.")] = None,
    publish_names: PublishNames = False,
    allow_word: AllowWord = None,
    dry_run: DryRun = False,
) -> None:
    """Publish a finished run on the Hub as one commit, tagged v1, v2, ... Any problem stops it before the upload.

    Of a cross-validation each fold is a model (OWNER/NAME-fold-0, ...); of a study each arm, by its cell with the most
    training images. With --model_license or --license_waiver the cards are written again, as by `hf-medtl card write`.
    """
    from hf_medtl.publish import hub
    from hf_medtl.publish.collections import collect, publishable_models
    from hf_medtl.publish.private_names import allowed_words
    from hf_medtl.runs.model_card import rewrite_card

    reasons, allowed = parse_waivers(waive), allowed_words(allow_word)
    models = {f"{repo}{suffix}": folder for suffix, folder in publishable_models(run).items()}
    plans = {}
    for name, folder in models.items():  # all are checked before the first is sent
        if model_license is not None or license_waiver is not None:
            rewrite_card(folder, None, model_license, license_waiver)
        plans[name] = hub.plan_upload(folder, reasons, publish_names, allowed)
        print_files(plans[name])
        if dry_run:
            print(f"Dry run: {len(plans[name])} files would go to {name}. Nothing was sent.")
    if dry_run:
        if collection:
            print(f"Dry run: {len(models)} models would be in the Collection {collection!r}. Nothing was sent.")
        return
    urls = []
    for name, folder in models.items():
        url = hub.push(
            folder, name, private=private, waive=reasons, plan=plans[name], publish_names=publish_names, allowed=allowed
        )
        urls.append(url)
        print(f"Pushed to {url}")
    if collection:
        print(f"Collected in {collect(collection, urls, private=private)}")
