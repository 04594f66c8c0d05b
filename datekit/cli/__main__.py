"""`python -m datekit.cli`, for launchers of several processes."""

from . import main

raise SystemExit(main())
