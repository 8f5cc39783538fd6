-- A module that is loaded when something of it is first asked for: what a daemon may never need takes no memory until
-- it does.

-- What stands for the module @name, whose fields are looked up and not written.
return function(name)
  return setmetatable({}, { __index = function(_, key) return require(name)[key] end })
end
