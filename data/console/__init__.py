"""What every command shares: how it begins and ends, what it says on the way, what it may execute."""
