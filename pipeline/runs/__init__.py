"""One run of the main job: checked, trained, evaluated, written down, and run again."""
