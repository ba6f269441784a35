"""The report page, the figures of papers, and the sentences of both."""
