"""The long tests of docs/reliability.md: what a run, a page and a reader of files survive."""
