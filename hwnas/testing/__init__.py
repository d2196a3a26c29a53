"""Stand-ins and contract checks, for the suite of this project and of packages that extend it.

``toys`` has a tiny space, its latency table and a profiler that computes instead of measuring;
``parts`` has one of every relaxation and a step of a search; ``contracts`` has ``check_profiler``,
``check_exporter`` and ``check_table``; ``search_contracts`` has ``check_relaxation``, ``check_scheme``,
``check_regularizer`` and ``check_derivation``.
"""
