"""Peak memory of the server during one large upload, and during a thousand at once."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.concurrent_senders import send_together
from benchmarks.measure import Ratio
from benchmarks.senders import send_stream
from benchmarks.servers import Server, uptrail
from benchmarks.uploads import GIB, MIB, create, patch

SENDERS = 1_000
EACH = 4 * MIB
BUDGET = 200  # MiB of resident memory at the peak


def run(scale: float) -> list[Ratio]:
    """Print peaks beside the budget, for the API and for all roles; no peer is measured."""
    senders, size = max(50, int(SENDERS * scale)), int(GIB * scale)
    for roles in (("api",), ()):
        of = "the API alone" if roles else "every role in one process"
        with TemporaryDirectory(prefix="uptrail-bench-") as folder:
            Path(folder).chmod(0o711)
            with uptrail(Path(folder) / "one", *roles) as server:
                _print_peak(f"{of}, idle", server)
                head = patch(server, create(server, "one.bin", size), size)
                send_stream(server.port, head, size)
                _print_peak(f"{of}, {size // MIB:,} MiB in one PATCH", server)
            with uptrail(Path(folder) / "many", *roles) as server:
                uploads = [create(server, f"{n}.bin", EACH) for n in range(senders)]
                heads = [patch(server, one, EACH) for one in uploads]
                deferred = send_together(server.port, heads, EACH)
                _print_peak(f"{of}, {senders:,} PATCHes of {EACH // MIB} MiB at once", server)
                if deferred:
                    print(f"  {deferred:,} of them were deferred")
    return []


def _print_peak(what: str, server: Server) -> None:
    peak = server.peak_memory() / MIB
    print(f"  {what:60} {peak:5.0f} MiB at the peak (budget: {BUDGET})", flush=True)
