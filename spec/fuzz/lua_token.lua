local crypto = require "sym.crypto"
local token = require "symphony.cluster.token"

local good = token.make(crypto.sha256("ca"), crypto.sha256("secret"):sub(1, 16))

local function check(text)
  local got, err = token.parse(text)
  if not got then
    assert(err.code == "invalid" and type(err.message) == "string" and type(err.hint) == "string")
    assert(#err.message < 200, "an error may not repeat all that it was given")
    return
  end
  assert(#got.ca == 32 and #got.secret == 16)
  local again = token.make(got.ca, got.secret)
  assert(#again == token.LENGTH)
  assert(again:upper() == text:match("^%s*(.-)%s*$"):upper(), "two texts are one token")
  local same = assert(token.parse(again))
  assert(same.ca == got.ca and same.secret == got.secret)
end

return {
  check = check,
  seeds = { good, "  " .. good:lower() .. "\n", good:sub(1, 60), "SYMTKN-2" .. good:sub(9), good:gsub("-", "--") },
  words = { "SYMTKN-", "SYMTKN-1-", "-", "1-", "z", "Z", "0", " ", "\0" },
}
