"""diskwright beside qemu-img: ``make bench``, ``make bench-scale``; docs/performance.md tells how to read it.

From top to bottom: :mod:`workloads` makes the files, :mod:`operations` lists what is measured, :mod:`runner` measures
it with :mod:`process`, :mod:`verify` compares what came out, :mod:`report` and :mod:`plot` show it. :mod:`inprocess`
measures the library, :mod:`scale` growth, :mod:`limits` what the machine could do at best.
"""
