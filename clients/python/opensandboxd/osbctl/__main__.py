from opensandboxd.osbctl.cli import main

main()
