"""The worker's side: a Celery task for each offloaded handler, and the treatment of its messages."""
