"""Play every world, as many at once as there are processors, and write the table of docs/worlds.md: `make worlds`.

`python -m tests.worlds 0 4` plays some of them, by their place in the table, and writes their lines anew.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tests.worlds.playing import PAGE, play, with_lines
from tests.worlds.table import WORLDS


def main(chosen: list[int]) -> int:
    played = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(play, at) for at in chosen or range(len(WORLDS))]
        for done in as_completed(asked):
            p = done.result()
            played.append(p)
            told = "; ".join(p.wrong) or "as it must"
            print(f"{p.at:2}  {p.world.name}: {told} ({p.seconds:.0f} s)", flush=True)
            for line in p.seen.told:
                print(f"      {line}", flush=True)
    PAGE.write_text(with_lines(PAGE.read_text(), played))
    surprising = [p for p in played if p.surprising]
    for p in surprising:
        print(f"{p.at:2}  {p.world.name}: " + ("wrong" if p.wrong else "right, take its `not_yet` away"))
    return 1 if surprising else 0


if __name__ == "__main__":
    sys.exit(main([int(at) for at in sys.argv[1:]]))
