"""Measured kernels out of tables of others, and what the price says of them.

    CSV files --kernel_tables--> Measured --kernel_prices--> seconds --kernel_errors--> mean errors by GPU and type
                                                                     --fit_kernels----> numbers of a device or a link
"""
