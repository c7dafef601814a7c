"""Measurements of the package, by room; `README.md` is the index. They are run from a checkout and not installed.

python -m benchmarks.adaptation.run --quick
"""
