"""Progress bars: one process is not stopped by another."""

import subprocess
import sys

CODE = """
import os
from ddpm_cli.system.progress import progress_bar
list(progress_bar(range(2)))
from tqdm import tqdm
if os.fork() == 0:
    tqdm.get_lock().acquire()
    os._exit(0)  # as if it was killed meanwhile
os.wait()
print(list(progress_bar(range(2))))
"""


def test_a_process_that_dies_while_it_draws_a_bar_stops_no_other():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 1]\n", done.stderr
