"""What k reviewed target patients bring to `adapt`, beside what else could be done with the same masks.

    python -m benchmarks.feedback.run [--shifts ...] [--reviewed 0 2 4 8 16 32] [--seeds 0 1 2] [--runs FOLDER]
    python -m benchmarks.feedback.run --report-only   # table and figure from the cells that there are
    python -m benchmarks.feedback.run --quick         # minutes: shows that it runs, measures nothing

A cell is one method on one shift with k reviewed patients and one seed. It is complete when its file is there, or its
line in `results/feedback.json`, and is then skipped. Patients are reviewed in a random order that depends on the seed;
their masks are the experts'. The folder that `adapt` reads as target holds images alone, and masks of the k patients
come through a feedback store, as a user's would.

`ours`: what `medfm-rl adapt` returned with default settings, source images and the store. Every candidate of the run is
measured too; the fine-tuned policy is ours without PPO.
`ours, chosen by case, M`: the masks that `medfm-rl choose --margin M` takes from those of the source model and of ours.
`trained again`: the source model trained anew on source and reviewed images, the latter up to 8 times each.
`fine-tuned on the same`: the source model fine-tuned on the reviewed images alone; of three learning rates the highest
that costs at most a Dice point on held-out source patients.
`upper`: trained on the labels of all target patients.

    python -m benchmarks.feedback.run --shifts camus-4ch-2ch --methods none --knowledge grades areas EF

`ours from grades` and its like: `adapt` with a store that knows less than masks (how, `benchmarks.feedback.judgements`
says; the reviewers are SIMULATED), of all target patients or of `--judged` of them.
`DPO from preferences`: direct preference optimisation of the source model by those of them that ours learns from too
(`benchmarks.baselines.preferences`), its learning rate chosen as that of the fine-tuned model.
"""

from __future__ import annotations

from benchmarks.feedback.cells import DPO, LADDER, METHODS, NONE, UPPER, Cells
from benchmarks.feedback.judgements import KNOWLEDGE, PREFERENCES
from benchmarks.feedback.methods import FeedbackCells
from benchmarks.feedback.report import report
from benchmarks.harness.command_line import add_results, add_shifts, begin_on_shifts, each_laboratory, parser_of


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--reviewed", type=int, nargs="*", default=[0, 2, 4, 8, 16, 32], metavar="K")
    parser.add_argument("--knowledge", nargs="+", choices=KNOWLEDGE, default=[], help="ours from less than masks too")
    parser.add_argument("--judged", type=int, metavar="K", help="patients who are judged or reported on (default: all)")
    arguments = parser.parse_args()
    name, runs, started_in = begin_on_shifts(arguments, "feedback")
    cells = Cells(runs, arguments.results or name)
    if not arguments.report_only:
        for laboratory in each_laboratory(arguments, runs, started_in):
            made = FeedbackCells(laboratory, cells)
            for method in (NONE, UPPER):
                made.make(method, 0)
            for k in arguments.reviewed:
                for method in arguments.methods:
                    made.make(method, k)
            for knowledge in arguments.knowledge:
                for method in (LADDER[knowledge], *((DPO,) if knowledge == PREFERENCES else ())):
                    made.make(method, arguments.judged or len(made.order))
    report(cells, started_in, arguments.quick, arguments.results or name)


if __name__ == "__main__":
    main()
