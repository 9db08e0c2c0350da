"""Students and teachers as models: loaded, grown, sharded, exported."""
