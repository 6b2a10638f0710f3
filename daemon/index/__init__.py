"""The projection in Redis: layout (keys), schema (index and alias), writer (under the version rule), reader."""
