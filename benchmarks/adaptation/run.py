"""Adaptation against everything simpler that needs no labels either, on the shifts there are, and on none.

    python -m benchmarks.adaptation.run [--shifts ...] [--methods ...] [--seeds 0 1 2] [--runs FOLDER]
    python -m benchmarks.adaptation.run --report-only   # table and figure from the cells that there are
    python -m benchmarks.adaptation.run --quick         # minutes: shows that it runs, measures nothing

A cell is one method on one shift with one seed. It is complete when its `cell.json` is there, and is then skipped, so a
benchmark that was killed goes on; missing cells are shown as missing. The report keeps the shifts that an earlier one
had and this one was not asked for. Source models and upper bounds are trained once for each data set and seed. All
methods start from the same source model and see the same unlabelled target images; the networks see 112 x 112 pixels,
and masks are compared on the images' own grid. The segmenter has batch normalisation, because three of the baselines
work on nothing else.

`ours` is `medfm-rl adapt` with its default settings and the source at hand, `ours-source-free` the same without it.

Intervals are 95 %, from 10 000 draws of patients. Every case is averaged over the seeds first. That is the same as
drawing patients together with their results of all seeds: a patient's results from three seeds are no three patients.
The intervals say what other patients would change; what other seeds would change stands in `dice_by_seed`.
"""

from __future__ import annotations

from benchmarks.adaptation.cells import NONE, write_experts
from benchmarks.adaptation.methods import METHODS, MethodCells
from benchmarks.adaptation.report import report
from benchmarks.harness.command_line import add_results, add_shifts, begin_on_shifts, each_laboratory, parser_of


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    arguments = parser.parse_args()
    name, runs, started_in = begin_on_shifts(arguments, "adaptation")
    if not arguments.report_only:
        for laboratory in each_laboratory(arguments, runs, started_in):
            write_experts(laboratory.shift, runs)
            cells = MethodCells(laboratory)
            # No adaptation first: harm is against it.
            for method in (NONE, *(method for method in METHODS if method in arguments.methods)):
                cells.make(method)
    # The report shows everything that could be there, so that what is missing is seen; one beside it what was asked.
    methods = METHODS if arguments.results is None else [method for method in METHODS if method in arguments.methods]
    report(runs, arguments.shifts, methods, arguments.seeds, started_in, arguments.quick, arguments.results or name)


if __name__ == "__main__":
    main()
