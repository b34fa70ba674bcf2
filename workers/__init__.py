"""What runs on compute nodes: ingest, broker, workers, sink, and the messages between them."""
