"""Where numbers come from: the table of published weights, files, downloads, and conversion between layouts."""
