"""Commands of the evaluation room: evaluate, rank, submission."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kits_cascade.cli.bars import progress_bar
from kits_cascade.cli.findings import print_findings
from kits_cascade.cli.options import Jobs
from kits_cascade.cli.root import app

if TYPE_CHECKING:
    from rich.console import Console

    from kits_cascade.evaluation.ranking import Ranking
    from kits_cascade.evaluation.score import ScoreTable


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder of predicted label files.")],
    truth: Annotated[
        Path, typer.Option("-g", "--truth", help="The truth: in KiTS layout, or a folder of label files.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the tables; the predictions' when not given.")
    ] = None,
    jobs: Jobs = None,
    worst: Annotated[int, typer.Option(min=0, help="How many cases to show, the worst on top; 0 shows all.")] = 15,
    complete: Annotated[
        bool, typer.Option("--complete", help="A missing or an extra prediction is an error (exit code 1).")
    ] = False,
    allow_float: Annotated[
        bool, typer.Option("--allow-float", help="Take labels stored as floating-point, if they are whole numbers.")
    ] = False,
) -> None:
    """Score predictions with the challenge's own numbers, and more.

    Writes evaluation.csv (to the letter what the challenge writes), evaluation.json and cases.csv. Exit code 1 when a
    case could not be scored.
    """
    from kits_cascade.evaluation.score import evaluate_folder

    target = predictions if out is None else out
    with progress_bar("evaluate") as progress:
        table = evaluate_folder(predictions, truth, target, jobs=jobs, progress=progress, allow_float=allow_float)
    console = _console()
    if table.cases:
        _print_scores(console, table, worst)
        console.print(f"evaluation.csv, evaluation.json and cases.csv are in {target}", style="dim", markup=False)
    print_findings(table.findings)
    incomplete = complete and len(table.errors) < len(table.findings)
    if table.errors or incomplete or not table.cases:
        raise typer.Exit(1)


def _console() -> Console:
    from rich.console import Console

    # In a file or a pipe there is no width to keep to: a table is never cut there.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _print_scores(console: Console, table: ScoreTable, worst: int) -> None:
    shown = table.worst_first[: worst or None]
    title = f"Worst {len(shown)} of {len(table.cases)} cases" if len(shown) < len(table.cases) else "Cases, worst first"
    regions = "kidn. masses tumor"
    rows = _table(
        title, "case", f"Dice\n{regions}", f"Surface Dice\n{regions}", "HD95\ntumor", "missed", "false\nalarms"
    )
    for case in shown:
        dice, surface = (" ".join(map(_score, part)) for part in (case.official[:3], case.official[3:]))
        counts = [
            "/".join(str(count(kind)) for kind in ("tumor", "cyst")) for count in (case.missed, case.false_alarms)
        ]
        rows.add_row(case.case, dice, surface, _number(case.scores["tumor"]["hd95"], 1), *counts)
    rows.caption = "missed and false alarms: lesions, tumor/cyst"
    console.print(rows)
    _print_means(console, table)


def _score(value: float) -> str:
    color = "red" if value < 0.5 else "yellow" if value < 0.8 else ""
    return f"[{color}]{value:.3f}[/]" if color else f"{value:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _print_means(console: Console, table: ScoreTable) -> None:
    from kits_cascade.labels import REGIONS

    summary = table.summary()
    title = f"Means of {len(table.cases)} cases, with 95 % bootstrap intervals"
    means = _table(title, "", "Dice", "Surface Dice", "HD95 mm")
    for group, content in summary.items():
        if group != "all":
            means.add_section()
            means.add_row(f"[bold]{group}[/] ({content['cases']})")
        for region in REGIONS:
            metrics = content["metrics"][region.name]
            intervals = [_interval(metrics[m], d) for m, d in (("dice", 3), ("surface_dice", 3), ("hd95", 1))]
            means.add_row(region.title, *intervals)
    console.print(means)
    _print_lesions(console, summary["all"]["lesions"])


def _print_lesions(console: Console, summary: dict[str, Any]) -> None:
    table = _table("Lesions, with 95 % Wilson intervals", "", "found", "rate", "false alarms", "cases with one")
    for kind, content in summary.items():
        for size, row in [("all", content["all"]), *content["bands"].items()]:
            if row["truth"] or row["predicted"]:
                name = f"[bold]{kind}[/]" if size == "all" else f"  {size}"
                found = f"{row['detected']} of {row['truth']}" if row["truth"] else "-"
                rates = _rate(row["sensitivity"]), _rate(row["cases_with_false_alarm"])
                table.add_row(name, found, rates[0], str(row["false_alarms"]), rates[1])
    console.print(table)


def _interval(row: dict[str, Any], digits: int) -> str:
    if row["low"] is None:
        return _number(row["mean"], digits)
    return f"{row['mean']:.{digits}f} [dim]({row['low']:.{digits}f}-{row['high']:.{digits}f})[/]"


def _rate(row: dict[str, float | None]) -> str:
    if row["value"] is None:
        return "-"
    return f"{row['value']:.0%} [dim]({row['low']:.0%}-{row['high']:.0%})[/]"


@app.command()
def rank(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Two or more folders with an evaluation.csv each; their names are the systems'."),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for ranking.csv and ranking.json.")] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Rank on the cases that all systems have, where they differ.")
    ] = False,
) -> None:
    """Rank systems as the challenge does (rank, then aggregate; tumour Dice breaks ties), and test them in pairs."""
    from kits_cascade.evaluation.ranking import rank_systems, read_systems
    from kits_cascade.evaluation.score import check_writable

    if out is not None:
        check_writable(out)
    ranking = rank_systems(read_systems(folders), common)
    _print_ranking(_console(), ranking)
    if out is not None:
        ranking.write(out)


def _print_ranking(console: Console, ranking: Ranking) -> None:
    places = _table(
        f"Ranking on {len(ranking.cases)} cases", "system", "rank", "mean rank", "mean Dice", "mean SD", "tumor Dice",
        "first in resamples",
    )  # fmt: skip
    for p in ranking.places:
        places.add_row(
            p.name, str(p.rank), f"{p.mean_rank:g}", f"{p.mean_dice:.4f}", f"{p.mean_surface_dice:.4f}",
            f"{p.tumor_dice:.4f}", f"{p.first_share:.0%}",
        )  # fmt: skip
    console.print(places)
    tests = _table(
        "Paired: Wilcoxon signed-rank, Holm-corrected over the pairs of a measure", "pair", "measure", "difference",
        "better/worse cases", "p", "p (Holm)",
    )  # fmt: skip
    for c in ranking.comparisons:
        tests.add_row(
            f"{c.first} - {c.second}", c.measure, f"{c.difference:+.4f} [dim]({c.low:+.4f} to {c.high:+.4f})[/]",
            f"{c.better_cases}/{c.worse_cases}", f"{c.p:.3g}", f"{c.p_holm:.3g}",
        )  # fmt: skip
    console.print(tests)
    if ranking.left_out:
        console.print(f"left out, not in all systems: {', '.join(ranking.left_out)}", style="dim", markup=False)


@app.command()
def submission(
    images: Annotated[Path, typer.Option("-i", "--images", help="Folder of the images that were to be segmented.")],
    predictions: Annotated[Path, typer.Option("-p", "--predictions", help="Folder of the predictions.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The zip file to write.")] = Path("submission.zip"),
    jobs: Jobs = None,
) -> None:
    """Check predictions as the challenge takes them, and pack them.

    A line per finding and exit code 1 when there is one; a zip when there is none.
    """
    from kits_cascade.evaluation.submission import check_submission, write_zip

    with progress_bar("submission") as progress:
        check = check_submission(images, predictions, jobs=jobs, progress=progress)
    for finding in check.findings:
        typer.echo(finding)
    if not check.ready:
        raise typer.Exit(1)
    write_zip(check, out)
    typer.echo(f"{out}: {len(check.files)} predictions, {out.stat().st_size / 1e6:.1f} MB, ready for submission")
