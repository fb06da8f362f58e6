"""Celery settings of the `tasks` app: what a deployer edits. Plain Celery, read from the environment.

What is not set here has a safe value already: late acknowledgement, rejection when a worker dies,
prefetch 1, JSON only, and on a machine without any setting a broker in the folder `.nitro`.
"""

import os

broker = os.environ.get("NITRO_BROKER_URL", "")
if broker:
    broker_url = broker
if os.environ.get("NITRO_RESULT_BACKEND"):
    result_backend = os.environ["NITRO_RESULT_BACKEND"]

task_default_queue = "nitro"
if broker.startswith(("amqp", "pyamqp")):
    # Replicated queues; their countdowns need a topic exchange (Celery user guide: Using RabbitMQ, Quorum Queues).
    task_default_queue_type = task_create_missing_queue_type = "quorum"
    task_default_exchange_type = task_create_missing_queue_exchange_type = "topic"

# Flower and `celery events` see every task from the moment it is sent.
worker_send_task_events = True
task_send_sent_event = True
