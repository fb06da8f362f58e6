"""The Celery application: `celery -A tasks worker`, `celery -A tasks flower`.

Its workers import the modules of `NITRO_HANDLERS`, by default those of the example shop.
"""

import os

from celery import Celery

from nitro.infrastructure.offload import bind
from nitro.infrastructure.offload.celery_defaults import configure_own_app

os.environ.setdefault("NITRO_HANDLERS", "examples.shop.handlers")

app = bind(configure_own_app(Celery("tasks", config_source="celeryconfig")))
