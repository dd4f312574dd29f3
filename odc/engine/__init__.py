"""Who orders the phases: the loop, extraction, schedules, observers, and the collectives between ranks."""
