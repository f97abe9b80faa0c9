"""What every page of this project needs: guards, Markdown made harmless, the votes' file."""
