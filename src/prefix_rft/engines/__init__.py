"""Where a method meets a framework. Nothing scientific lives here."""
