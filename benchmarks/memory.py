"""Memory of the server while one large file arrives, and while a thousand arrive at once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.crowd import send_together
from benchmarks.measure import Ratio
from benchmarks.senders import send_stream
from benchmarks.servers import Server, uptrail
from benchmarks.uploads import GIB, MIB, create, patch

SENDERS = 1_000
EACH = 4 * MIB
BUDGET = 200  # MiB of resident memory at the peak


def run(scale: float) -> list[Ratio]:
    """Nothing is compared: peaks are printed, beside the budget; for the API, and for all roles."""
    senders, size = max(50, int(SENDERS * scale)), int(GIB * scale)
    for roles in (("api",), ()):
        of = "the API alone" if roles else "every role in one process"
        with TemporaryDirectory(prefix="uptrail-bench-") as folder:
            Path(folder).chmod(0o711)
            with uptrail(Path(folder) / "one", *roles) as server:
                _tell(f"{of}, nothing going on", server)
                head = patch(server, create(server, "one.bin", size), size)
                send_stream(server.port, head, size)
                _tell(f"{of}, {size // MIB:,} MiB in one PATCH", server)
            with uptrail(Path(folder) / "many", *roles) as server:
                uploads = [create(server, f"{n}.bin", EACH) for n in range(senders)]
                heads = [patch(server, one, EACH) for one in uploads]
                put_off = send_together(server.port, heads, EACH)
                _tell(f"{of}, {senders:,} PATCHes of {EACH // MIB} MiB at once", server)
                if put_off:
                    print(f"  {put_off:,} of them were put off")
    return []


def _tell(what: str, server: Server) -> None:
    peak = server.peak_memory() / MIB
    print(f"  {what:60} {peak:5.0f} MiB at the peak (budget: {BUDGET})", flush=True)
