"""The worker's side: a Celery task for each offloaded handler, and what happens when one arrives."""
