"""Names and format of the files in a folder of drawings: `build` writes them, `render` reads them."""

FORMAT = 2
INDEX, SUBJECTS, SOURCES = "index.json", "subjects.json", "sources.json"
