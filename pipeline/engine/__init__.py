"""What runs the stages: units and steps on Beam, files, workers, progress. It knows no stage."""
