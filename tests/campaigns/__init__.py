"""Long-running campaigns: kill, endurance and fuzz, started by scripts in launch/."""
