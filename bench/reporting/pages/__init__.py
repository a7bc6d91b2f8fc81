"""Web pages with sortable tables and interactive charts: the look that a study's report and the leaderboard share.

`page` has what a page consists of, and renders it; `assets` has its style sheet and scripts, which a page holds itself
or links to. Texts are not trusted: the template escapes them, the data of charts are JSON in which no tag can end, and
the content security policy of a page forbids the browser to run any other script and to fetch anything from a network.
"""
