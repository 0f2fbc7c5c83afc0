"""`make bench`: what opensandboxd costs on top of the Docker engine and of gRPC, beside OpenSandbox's own server.

All that is compared is measured in one run on one machine, in turns, so that what disturbs one disturbs all.
"""
