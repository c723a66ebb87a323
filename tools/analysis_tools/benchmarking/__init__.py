"""Parts of ``tools/analysis_tools/benchmark.py``: what is compared, measured and shown."""
