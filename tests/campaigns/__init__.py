"""Long-running campaigns: kill, endurance and fuzz programs, each started by a script in launch/."""
