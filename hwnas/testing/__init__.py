"""Stand-ins and contract checks, for the suite of this project and of packages that extend it.

``toys`` has a tiny space, its latency table and a profiler that computes instead of measuring;
``parts`` has one of every relaxation; ``contracts`` has ``check_profiler``,
``check_relaxation`` and ``check_exporter``.
"""
