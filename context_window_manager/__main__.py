"""Run `python -m cwm_mcp` for the user guide's command `python -m context_window_manager`."""

import runpy

# alter_sys sets `sys.argv[0]` to the module that really runs, so that its usage text is right.
runpy.run_module("cwm_mcp", run_name="__main__", alter_sys=True)
