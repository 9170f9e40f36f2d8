"""A run is a folder: its checkpoints, how it goes on, and its record.

How a run goes on, in the order in which `prepare` of ``train_w2s.py`` does it::

    folder.lock_existing_run       nobody else may write there; rank 0 chooses the checkpoint (`find.py`) and reads it
                                   (`Checkpoint`), and the other ranks read the same file
      everything of the run is built as if it were new, of the same flags
    training.run_files.resume      flags, data and models are compared with those of the checkpoint; then
      restore.restore              weights, average, optimizer, scaler and plateau take up its state; returns `Position`:
                                   epoch and batch, of which views, their order and the learning rate follow
      models are compiled and wrapped, for which their weights had to be there
    restore.restore_rank_state     what differs by rank inside an epoch, since DDP has copied the buffers of rank 0
    training.run_files.open_run_files   log and history are cut back to that moment
    Saver.resume_from              copies of the last epoch that are missing are made, files of a later one set aside
"""
