from satclip_engine.files import write_atomically

write_whole = write_atomically
