"""tuspyserver as its documentation mounts it, into the folder that FILES names."""

from __future__ import annotations

import os

from fastapi import FastAPI  # type: ignore[import-not-found]
from tuspyserver import create_tus_router  # type: ignore[import-not-found]

app = FastAPI()
app.include_router(create_tus_router(prefix="files", files_dir=os.environ["FILES"]))
