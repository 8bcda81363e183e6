"""`cwm ui`: one page on loopback that shows what is stored and how it goes. It reads, and can change nothing."""
