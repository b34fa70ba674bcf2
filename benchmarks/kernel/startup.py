"""A process that begins to use the kernel, and says how long that took: import, machine code, the first lot."""

from __future__ import annotations

import json
from time import perf_counter, process_time


def main() -> None:
    """Print what it took: s of wall time, and of CPU time (``_cpu_s``)."""
    began = perf_counter(), process_time()
    from ...workers.kernel import warm_up

    imported = perf_counter(), process_time()
    warm_up()
    warm = perf_counter(), process_time()
    told = {}
    for name, before, after in (("import", began, imported), ("warm_up", imported, warm)):
        told[f"{name}_s"] = round(after[0] - before[0], 3)
        told[f"{name}_cpu_s"] = round(after[1] - before[1], 3)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
