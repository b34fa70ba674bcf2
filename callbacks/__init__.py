"""What listens to documents: the dispatcher, the recorder, the catalog, live plots."""
