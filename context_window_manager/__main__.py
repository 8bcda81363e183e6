"""`python -m context_window_manager`, the command of the user guide, is `python -m cwm_mcp`."""

import runpy

# alter_sys leaves `sys.argv[0]` naming the module that really runs, so that its usage text is right.
runpy.run_module("cwm_mcp", run_name="__main__", alter_sys=True)
