"""Use cases: what each verb of the contract does, whatever the transport and the backend."""
