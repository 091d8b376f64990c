"""Other servers of the tus protocol, installed beside this file and started like ours."""
